"""The routes, one module per dialect: request bodies, replies and errors."""
