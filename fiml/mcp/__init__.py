"""The MCP door: `server` builds the server, `tools` holds the tools."""
