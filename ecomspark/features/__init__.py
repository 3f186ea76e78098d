"""DataFrame to DataFrame steps: lazy, without paths, sessions or clocks."""
