"""A model as files, in a folder or on the Hugging Face Hub: what is there, whether it is whole, and parts of it."""
