"""A SoapySDR device that hears itself, how to build it, and measurements with it."""
