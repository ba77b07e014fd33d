//! The typed asynchronous client of the agent API.
