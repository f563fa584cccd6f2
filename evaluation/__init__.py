"""What eval.py needs: pairs and texts to rows, rows to measures, measures to tables, sentences, a report and a page."""
