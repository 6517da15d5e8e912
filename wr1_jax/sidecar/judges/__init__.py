"""The two learned judges: a vision-language model for the offset view, a human-preference model for the frames."""
