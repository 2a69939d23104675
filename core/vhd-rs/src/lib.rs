//! The VHD disk format: footers, headers, BAT, bitmaps, batmap, locators, chains. No payload I/O.
