"""What the plugin adds to LLaMA Board: controls, live view, rollout viewer, data preview, abort."""
