"""The quantiser as a library: encoders, fusion, k-means, RQ-KMeans, artefacts, metrics, trie and inspection."""
