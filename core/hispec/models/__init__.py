"""Models as layer stacks: loading them, and running any span of their layers."""
