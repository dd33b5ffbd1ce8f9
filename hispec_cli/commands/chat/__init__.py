"""`hispec chat`: what is typed, what is commanded, what is answered."""
