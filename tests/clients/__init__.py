"""Client packages of others against the server: the list of cases, the scripts, the page."""
