"""Operators in C++ for a CPU, each in a Python file and a C++ file of one name, and the code that builds them."""
