"""The MCP server: `server` builds it, `tools`, `memory_tools` and `sharing_tools` have its tools."""
