"""From matched points to masks: decoding, refinement, scores, suppression and the union, tile by tile."""
