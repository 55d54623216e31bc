"""Speech recordings to text, by the code that measured the model."""
