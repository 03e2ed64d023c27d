"""C++ operators and the code that builds them."""
