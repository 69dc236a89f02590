"""What a nonlinear function is: its term in the catalogue's language, evaluated, differentiated and enclosed in any arithmetic."""
