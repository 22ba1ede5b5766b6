"""Shared building blocks of the course on video person re-identification."""
