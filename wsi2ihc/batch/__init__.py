"""Many slides: a manifest of them, children that translate, engines that run children, and what came of it."""
