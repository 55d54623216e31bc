"""Each command's work: parameters in, one stage per language, a line that says what came out."""
