"""The gateway role: the API. Follow a request through `routes`, `admission`, `placement`, `completions`."""
