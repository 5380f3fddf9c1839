"""The report of one or more runs: tables, figures, and findings as HTML, Markdown, and LaTeX."""
