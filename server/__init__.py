"""What serve.py needs: an engine that owns the models, the page to explore, and an endpoint as OpenAI's."""
