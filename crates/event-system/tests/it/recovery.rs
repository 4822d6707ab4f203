//! What an earlier run has left, the next one finishes (R1, R2, R4, F4).
