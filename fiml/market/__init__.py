"""What a market says about an instrument: its price, its history, and figures computed from them."""
