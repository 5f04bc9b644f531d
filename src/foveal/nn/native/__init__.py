"""Code in C++ for what torch's operators do too slowly. It is compiled on first use, and never needed: without a
compiler, or on another processor, everything runs on torch's operators."""
