"""Where services are: settings, credentials, and what entry points open from them."""
