"""Components of LangChain, LlamaIndex and haystack over `bge_client` and `HybridSearch`.

langchain     embeddings, sparse embeddings, reranker, retriever     bge-retrieval[langchain]
llamaindex    embedding, sparse encoder, reranker, retriever         bge-retrieval[llamaindex]
haystack      embedders, sparse embedders, ranker, retriever         bge-retrieval[haystack]

Import one of them: each needs its extra. Batches, retries and errors are the client's.
"""
