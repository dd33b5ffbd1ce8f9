"""Benchmark reports as files: JSON, CSV and Markdown for programs and pull requests, HTML for people."""
