"""A plan -> artifacts: inputs resolved, stages called, results published and reported."""
