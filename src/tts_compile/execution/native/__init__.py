"""C++ for a CPU, and the code that builds it and registers its operators with torch."""
