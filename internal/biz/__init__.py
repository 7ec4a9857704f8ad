"""The rules of Sluice and the ports they need. Imports the standard library only."""
