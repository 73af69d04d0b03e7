"""Operations on the user's files, and sharing with other users."""
