"""What a step costs and how exact it is, beside plain and official implementations."""
