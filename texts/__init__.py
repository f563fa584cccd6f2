"""Reading texts from files and the Hugging Face hub, splitting them, and the token files made from them."""
