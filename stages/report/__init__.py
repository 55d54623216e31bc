"""What was measured, for people: one HTML file, the same in Markdown, and the numbers behind both."""
