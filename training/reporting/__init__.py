"""Reports of figures and pictures: one document, written as a web page, Markdown, CSV and JSON."""
