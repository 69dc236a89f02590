"""What solvers are asked about a disjunct, question after question, and what their replies prove. Knows no tree."""
