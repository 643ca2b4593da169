"""What a run or a comparison of runs looks like to a reader: metrics, tables, figures."""
