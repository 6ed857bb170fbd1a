"""Reports of metrics and figures: one document, written as HTML, Markdown, CSV and JSON."""
