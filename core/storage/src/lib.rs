//! SMAPIv2: SR life cycle, datapath automaton, VHD trees over containers, journal.
