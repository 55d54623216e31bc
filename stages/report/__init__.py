"""The report stage: writes the results as one HTML file, as Markdown, and as the numbers behind both."""
