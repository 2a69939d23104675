//! Block and socket I/O on io_uring. The only importer of io-uring.
