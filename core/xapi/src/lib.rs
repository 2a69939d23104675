//! XenAPI: model table, wire codecs, sessions, roles, tasks, events, transfers, the CLI server.
