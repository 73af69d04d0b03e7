"""Operations on names, and sharing."""
