"""What a network sees: gradients of the image, class maps, features inverted and maximised, and style.

Every function takes any network of minidl in evaluation mode, and images (N, H, W, 3) as NumPy arrays. `OnPixels`
makes a network take pixels in 0..1, so that every picture is in the range that a screen shows.
"""
