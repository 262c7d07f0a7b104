"""Networks over pictures of any size: tile by tile, band by band, with exact seams and bounded memory."""
