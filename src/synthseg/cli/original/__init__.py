"""What the command ``mri_synthseg`` is made of: its flags, files and tables, its networks, its loop over scans."""
