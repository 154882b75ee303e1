"""The model of V1: four pathways, an encoder, a decoder with a mixture of experts, and its size presets."""
