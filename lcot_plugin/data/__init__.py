"""Records of any data set in, Samples out: formats, images, traces, target formats, policies."""
