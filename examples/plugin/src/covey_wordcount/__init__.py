"""An example of a plug-in: the role `wordcount` and the back end `reverse`."""
