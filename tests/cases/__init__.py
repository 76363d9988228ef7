"""What public bug trackers of this field are about: small inputs, each with its neighbours, end to end."""
